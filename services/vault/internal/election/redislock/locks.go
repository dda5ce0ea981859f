package redislock

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// locks are the requests to Redis. Each key is a hash tag of its own, so that in a cluster the shards' locks are spread over the nodes, and no script needs two.
type locks struct {
	client redis.UniversalClient
	prefix string
	member string
	ttl    time.Duration
}

var (
	// acquireScript locks what is free, or is ours already. It returns -1 for success, else for how many milliseconds it is locked. A lock that has longer than a
	// TTL was written before Redis' clock was set back, by somebody who may be dead since; its holder, if it lives, renews it.
	acquireScript = redis.NewScript(`
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return -1 end
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return -1 end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[2]) then return left end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return tonumber(ARGV[2])`)

	// extendScript renews a lock that is ours, and returns whether it was.
	extendScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0`)

	// releaseScript deletes a lock that is ours.
	releaseScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)

	// beatScript renews a member's entry, whose score is when it expires by Redis' clock, and removes what has expired, or was written before that clock
	// was set back. It returns how many members there are, and in how many milliseconds the next one expires.
	beatScript = redis.NewScript(`
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local expiry = now + tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', expiry), '+inf')
redis.call('ZADD', KEYS[1], string.format('%.0f', expiry), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {redis.call('ZCARD', KEYS[1]), tonumber(first[2]) - now}`)
)

func (l locks) lock(shard int) string { return fmt.Sprintf("%s:{master-%d}", l.prefix, shard) }

func (l locks) members() string { return l.prefix + ":{members}" }

// bounded limits a request to a part of the TTL, so that several fit into one.
func (l locks) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.ttl/6)
}

// acquire locks a shard by this value. If it is another's, wait says when it would expire. After an error it may have been locked nevertheless.
func (l locks) acquire(ctx context.Context, shard int, value string) (free bool, wait time.Duration, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	answer, err := acquireScript.Run(ctx, l.client, []string{l.lock(shard)}, value, l.ttl.Milliseconds()).Int64()
	if err != nil {
		return false, 0, fmt.Errorf("acquire lock of shard %d: %w", shard, err)
	}
	if answer < 0 {
		return true, 0, nil
	}
	return false, time.Duration(answer+1) * time.Millisecond, nil
}

// extend renews a shard's lock, if it has this value.
func (l locks) extend(ctx context.Context, shard int, value string) (ours bool, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	answer, err := extendScript.Run(ctx, l.client, []string{l.lock(shard)}, value, l.ttl.Milliseconds()).Int64()
	if err != nil {
		return false, fmt.Errorf("extend lock of shard %d: %w", shard, err)
	}
	return answer == 1, nil
}

// release deletes a shard's lock, if it has this value.
func (l locks) release(ctx context.Context, shard int, value string) error {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	if err := releaseScript.Run(ctx, l.client, []string{l.lock(shard)}, value).Err(); err != nil {
		return fmt.Errorf("release lock of shard %d: %w", shard, err)
	}
	return nil
}

// beat shows that this replica lives. It returns how many do, and in what time that may change by an expiry.
func (l locks) beat(ctx context.Context) (members int, change time.Duration, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	answer, err := beatScript.Run(ctx, l.client, []string{l.members()}, l.member, l.ttl.Milliseconds()).Int64Slice()
	if err != nil {
		return 0, 0, fmt.Errorf("renew membership: %w", err)
	}
	if len(answer) != 2 || answer[0] < 1 {
		return 0, 0, fmt.Errorf("renew membership: unexpected answer %v", answer)
	}
	return int(answer[0]), time.Duration(answer[1]+1) * time.Millisecond, nil
}

// leave removes this replica from the members.
func (l locks) leave(ctx context.Context) error {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	if err := l.client.ZRem(ctx, l.members(), l.member).Err(); err != nil {
		return fmt.Errorf("leave members: %w", err)
	}
	return nil
}
