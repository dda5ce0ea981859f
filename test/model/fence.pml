/*
 * The fence: replicas that believe, for whatever reason, that they are master of one shard, and a database that lets only
 * the last one that took the shard write. README.md says what is modelled and what is not.
 *
 * By default the fence is the vault's. One of these makes it another, which must be found wrong:
 *   -DNO_FENCE     a master writes because it believes
 *   -DSUBQUERY     UPDATE works ... WHERE EXISTS (SELECT ... FROM shards WHERE epoch = mine), at READ COMMITTED
 *   -DEPOCH_ALONE  the fence compares the epoch and not the holder
 * -DANY_LOCK leaves the lock out: a replica becomes master whenever it likes, which is more than any Redis can do to it, and costs
 * fewer states. And -DREACHABLE asks for a run in which a second master writes while the first one still believes: there must be one, or
 * the model would prove nothing.
 */

#ifndef REPLICAS
#define REPLICAS 2
#endif
#ifndef TAKES
#define TAKES 3 /* how often the shard is taken in a run, over all replicas */
#endif
#ifndef WRITES
#define WRITES 2 /* how many transactions a mastership begins */
#endif

#define NOBODY 255

#ifndef ANY_LOCK
/* Redis: who has the lock. */
byte lock = NOBODY;
#endif

/* The database. What is committed of the shard's row: */
byte epoch = 0;
byte holder = 0; /* the number of the Take, as unique as a UUID */
/* what it was before the last Take, for a fail-over that loses that */
byte epoch_before = 0;
byte holder_before = 0;
/* which transaction has locked which row; transactions are named by their process */
byte shard_row = NOBODY;
byte work_row = NOBODY;
/* counts fail-overs: a transaction of an earlier life is gone */
byte life = 0;

byte takes = 0;
#ifdef REACHABLE
byte written_by = NOBODY; /* the replica whose write was the last to commit, while it believes */
#endif

/* A transaction that began in an earlier life of the database finds its connection broken at its next statement. */
#define GONE (began != life)

inline rollback() {
	atomic {
		if
		:: shard_row == me -> shard_row = NOBODY
		:: else
		fi;
		if
		:: work_row == me -> work_row = NOBODY
		:: else
		fi;
		began = 0
	}
}

/* UPDATE: waits for the row's lock. Afterwards it judges the row as it is committed by then. */
inline lock_row(row) {
	atomic {
		(row == NOBODY || row == me || GONE);
		if
		:: GONE
		:: else -> row = me
		fi
	}
}

/* Taking the shard: BEGIN; UPDATE shards SET epoch = epoch + 1, holder = new; COMMIT. */
inline take() {
	began = life;
	lock_row(shard_row);
	atomic {
		if
		:: GONE
		:: else ->
			my_epoch = epoch + 1;
			takes++;
			my_holder = takes
		fi
	};
	atomic {
		if
		:: GONE -> mine = false
		:: else ->
			epoch_before = epoch;
			holder_before = holder;
			epoch = my_epoch;
			holder = my_holder;
			if
			:: mine = true
			:: mine = false /* the answer was lost */
			fi
		fi
	};
	rollback() /* releases the locks, after a commit too; nobody else saw the row in between, for it was locked */
}

/* A master's write lands. It must not after a newer master's fence write: it must be the committed row's own holder's. */
inline commit_write() {
	atomic {
		if
		:: GONE
		:: else ->
			assert(holder == my_holder);
#ifdef REACHABLE
			assert(written_by == NOBODY || written_by == me);
			written_by = me
#endif
		fi;
		rollback()
	}
}

#ifdef NO_FENCE
inline write() {
	began = life;
	lock_row(work_row);
	commit_write()
}
#else
#ifdef SUBQUERY
inline write() {
	began = life;
	/* The statement begins: it will judge other tables by this moment. */
	atomic {
		seen_epoch = epoch;
		seen_holder = holder
	};
	/* It waits for its own row, which it judges anew; not so the subquery. */
	lock_row(work_row);
	if
	:: seen_epoch == my_epoch && seen_holder == my_holder -> commit_write()
	:: else ->
		rollback();
		mine = false
	fi;
	atomic {
		seen_epoch = 0;
		seen_holder = 0
	}
}
#else
#ifdef EPOCH_ALONE
#define OWN (epoch == my_epoch)
#else
#define OWN (epoch == my_epoch && holder == my_holder)
#endif
inline write() {
	began = life;
	/* UPDATE shards SET writes = writes + 1 WHERE epoch = mine AND holder = mine */
	lock_row(shard_row);
	if
	:: !GONE && OWN ->
		lock_row(work_row);
		commit_write()
	:: GONE || !OWN ->
		rollback();
		mine = false
	fi
}
#endif
#endif

/*
 * A replica. Each step may be followed by a pause of any length, past the lock's life too: spin tries all orders of all
 * steps. From the lock on until it is released the replica believes that it is master, whatever the lock has become.
 */
proctype Replica(byte me) {
	byte my_epoch, my_holder, began, writes;
	bool mine;
#ifdef SUBQUERY
	byte seen_epoch, seen_holder;
#endif
	do
	:: takes >= TAKES -> break
	:: takes < TAKES ->
#ifndef ANY_LOCK
		/* SET NX, or it is ours already */
		atomic {
			(lock == NOBODY || lock == me || takes >= TAKES);
			if
			:: takes >= TAKES -> goto ended
			:: else -> lock = me
			fi
		};
#endif
		take();
		do
		:: !mine -> break /* fenced, or the database failed */
		:: mine && writes < WRITES ->
			writes++;
			write()
		:: mine -> break /* it resigns, or its clocks or a refused renewal say that the lock is lost */
		od;
#ifdef REACHABLE
		if
		:: written_by == me -> written_by = NOBODY
		:: else
		fi;
#endif
		atomic {
			/* what is of no use any more is forgotten, so that states which differ in nothing else are one */
			mine = false;
			writes = 0;
			my_epoch = 0;
			my_holder = 0;
#ifndef ANY_LOCK
			/* compare and delete */
			if
			:: lock == me -> lock = NOBODY
			:: else
			fi
#endif
		}
	od;
#ifndef ANY_LOCK
ended:
	skip
#endif
}

#ifndef ANY_LOCK
/*
 * Redis. A lock goes when it expires, when somebody flushes everything, when the server restarts empty or fails over to a
 * replica that has not heard of it. It comes back by a fail-over to a replica that has not heard that it was released.
 */
active proctype Redis() {
	byte to;
end:	do
	:: lock != NOBODY -> lock = NOBODY
	:: atomic {
		lock == NOBODY;
		select(to: 0 .. (REPLICAS - 1));
		lock = to
	}
	od
}
#endif

/* A call at any replica, which locks the row that masters write, for a grant's sake for example. */
active proctype Call() {
	byte me = 100;
	byte began;
end:	do
	:: began = life;
	   lock_row(work_row);
	   rollback()
	od
}

/* The database fails over to a standby that lacks the last Take. Open transactions are gone with it. */
active proctype Failover() {
	atomic {
		takes > 0;
		life++;
		shard_row = NOBODY;
		work_row = NOBODY;
		epoch = epoch_before;
		holder = holder_before
	}
}

init {
	byte i;
	atomic {
		for (i : 0 .. (REPLICAS - 1)) {
			run Replica(i)
		}
	}
}
