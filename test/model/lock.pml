/*
 * The lock: replicas that ask a Redis which keeps what it is told, over a network that delays and loses, in discrete time.
 * README.md says what is modelled and what is not.
 *
 * By default it is done as the vault does it, and no two replicas believe at once that they are master, however long either
 * is paused. One of these makes it another way, which must be found wrong:
 *   -DFROM_REPLY    a mastership is counted from when the answer came, not from before the request was sent
 *   -DONE_CLOCK     it is counted by one clock, which may stand still (monotonic, in a suspended machine) or be set back (wall)
 *   -DBLIND_DELETE  the lock is released by deleting the key, whoever's it is
 *   -DONE_VALUE     all masterships of a replica lock by one value, so that a release which comes late is for the next one
 *   -DFORGETS       Redis loses the lock, or gives one back: nothing here helps, and that is what the fence is for
 */

#ifndef REPLICAS
#define REPLICAS 2
#endif
#ifndef TTL
#define TTL 2
#endif
#ifndef TERMS
#define TERMS 2 /* how many masterships a replica tries to get in a run */
#endif

#define FREE 0
#ifdef ONE_VALUE
#define VALUE(who) ((who) + 1)
#else
#define VALUE(who) ((who) * TERMS + term[who] + 1)
#endif

mtype = { NONE, ACQUIRE, EXTEND, RELEASE };

/* Redis: whose the lock is, and for how much longer. */
byte lock = FREE;
byte lock_left = 0;

/* The request that a replica waits for, and one that it has given up waiting for, which may arrive nevertheless. */
mtype asked[REPLICAS] = NONE;
byte asked_value[REPLICAS];
bool answered[REPLICAS];
bool granted[REPLICAS];
mtype late[REPLICAS] = NONE;
byte late_value[REPLICAS];

byte term[REPLICAS];
byte fresh[REPLICAS]; /* what a grant of the request under way would be good for, counted from before it was sent */
byte left[REPLICAS];  /* what is left of the mastership; above zero the replica believes */

/* The three scripts. */
inline execute(kind, value, ok) {
	if
	:: kind == ACQUIRE && (lock == FREE || lock == value) ->
		lock = value;
		lock_left = TTL;
		ok = true
	:: kind == EXTEND && lock == value ->
		lock_left = TTL;
		ok = true
#ifdef BLIND_DELETE
	:: kind == RELEASE ->
#else
	:: kind == RELEASE && lock == value ->
#endif
		lock = FREE;
		lock_left = 0;
		ok = true
	:: else -> ok = false
	fi
}

inline send(kind) {
	atomic {
		asked[me] = kind;
		asked_value[me] = VALUE(me);
		answered[me] = false;
		granted[me] = false;
		fresh[me] = TTL
	}
}

/* Waits for the answer, or gives it up: then the request is lost, or comes late. */
inline receive() {
	if
	:: atomic { answered[me] -> asked[me] = NONE }
	:: atomic {
		if
		:: !answered[me] && late[me] == NONE ->
			late[me] = asked[me];
			late_value[me] = asked_value[me]
		:: true /* the request was lost, or its answer */
		fi;
		granted[me] = false;
		asked[me] = NONE
	}
	fi
}

inline believe() {
	atomic {
		if
		:: granted[me] ->
#ifdef FROM_REPLY
			left[me] = TTL
#else
			left[me] = fresh[me]
#endif
		:: else
		fi;
		/* Nobody else believes. */
		i = 0;
		do
		:: i < REPLICAS -> assert(i == me || left[me] == 0 || left[i] == 0); i++
		:: else -> break
		od;
		i = 0
	}
}

/* A replica. spin tries all orders of its steps with those of the clock, so it is paused anywhere, for any time. */
proctype Replica(byte me) {
	byte i;
	do
	:: term[me] == TERMS - 1 && asked[me] == NONE && left[me] == 0 && lock != VALUE(me) -> break /* enough */
	:: left[me] == 0 ->
		send(ACQUIRE);
		receive();
		believe()
	:: left[me] > 0 ->
		send(EXTEND);
		receive();
		if
		:: left[me] > 0 -> believe() /* later it would be of no use */
		:: else -> granted[me] = false
		fi
	:: term[me] < TERMS - 1 ->
		/* It resigns, is fenced, or its time is over: the lock is released, if it is still its own. */
		left[me] = 0;
		send(RELEASE);
		receive();
		atomic {
			granted[me] = false;
			term[me]++
		}
	od
}

active proctype Redis() {
	byte i;
	bool ignored;
end:	do
	:: atomic {
		select(i: 0 .. (REPLICAS - 1));
		if
		:: asked[i] != NONE && !answered[i] ->
			execute(asked[i], asked_value[i], granted[i]);
			answered[i] = true
		:: late[i] != NONE ->
			execute(late[i], late_value[i], ignored);
			late[i] = NONE
		:: else
		fi;
		i = 0;
		ignored = false
	}
#ifdef FORGETS
	:: lock != FREE -> atomic { lock = FREE; lock_left = 0 }
	:: atomic {
		lock == FREE;
		select(i: 0 .. (REPLICAS - 1));
		lock = VALUE(i);
		lock_left = TTL;
		i = 0
	}
#endif
	od
}

/* Time passes for all at once, at any moment. */
active proctype Clock() {
	byte i;
end:	do
	:: atomic {
		if
		:: lock_left > 0 ->
			lock_left--;
			if
			:: lock_left == 0 -> lock = FREE
			:: else
			fi
		:: else
		fi;
		i = 0;
		do
		:: i < REPLICAS ->
			if
			:: true ->
				left[i] = (left[i] > 0 -> left[i] - 1 : 0);
				fresh[i] = (fresh[i] > 0 -> fresh[i] - 1 : 0)
#ifdef ONE_CLOCK
			:: true /* not for this one */
#endif
			fi;
			i++
		:: else -> break
		od;
		i = 0
	}
	od
}

init {
	byte i;
	atomic {
		for (i : 0 .. (REPLICAS - 1)) {
			run Replica(i)
		}
	}
}
