package budget

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

// bucket is one replica's own share of a kind. What it does, takeScript does for all replicas.
type bucket struct {
	level [len(classes)]float64
	at    time.Time
}

// fill adds what time has brought. Each class gets half, and what the other has no room for.
func (b *bucket) fill(now time.Time, r rate) {
	if b.at.IsZero() || b.at.Sub(now) > longestPause { // made just now, or the clock was set back
		b.at = now
	}
	fresh := float64(max(0, now.Sub(b.at).Milliseconds())) * r.perMilli
	if fresh == 0 {
		return
	}
	b.at = now
	first := min(fresh/2, r.room-b.level[0])
	second := min(fresh/2, r.room-b.level[1])
	spare := fresh - first - second
	b.level[0] = min(r.room, b.level[0]+first+spare)
	b.level[1] = min(r.room, b.level[1]+second+spare)
}

// take spends a permit, or says how long to wait.
func (b *bucket) take(now time.Time, r rate, class Class) answer {
	b.fill(now, r)
	if ahead := b.at.Sub(now); ahead > 0 {
		return answer{wait: ahead + time.Duration(math.Ceil(2/r.perMilli))*time.Millisecond}
	}
	if b.level[class] >= 1 {
		b.level[class]--
		return answer{left: b.level[class] >= 1}
	}
	flow := r.perMilli / 2
	if b.level[1-class] >= r.room {
		flow = r.perMilli
	}
	return answer{wait: time.Duration(math.Ceil((1-b.level[class])/flow)) * time.Millisecond}
}

// answer is a bucket's.
type answer struct {
	// wait is how long to wait; 0 when there was a permit.
	wait time.Duration
	// left: there is another one.
	left bool
}

// pause empties the bucket until some time has passed.
func (b *bucket) pause(now time.Time, after time.Duration) {
	if b.at.Sub(now) > longestPause {
		b.at = now
	}
	b.level = [len(classes)]float64{}
	b.at = later(b.at, now.Add(after))
}

var (
	// takeScript spends a permit of the class ARGV[1], 1 or 2, from a bucket that ARGV[2] permits a millisecond flow into, with room for
	// ARGV[3] of each class. It returns in how many milliseconds to ask again, or else 0, and -1 when there is another one. ARGV[4] is the
	// longest pause: a bucket whose time lies further ahead was written before Redis' clock was set back.
	takeScript = redis.NewScript(`
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local class, rate, room = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], '1', '2', 'at')
local level = {tonumber(kept[1]) or 0, tonumber(kept[2]) or 0}
local at = tonumber(kept[3]) or now
if at - now > tonumber(ARGV[4]) then at = now end
local fresh = math.max(0, now - at) * rate
if fresh > 0 then
  at = now
  local first = math.min(fresh / 2, room - level[1])
  local second = math.min(fresh / 2, room - level[2])
  local spare = fresh - first - second
  level[1] = math.min(room, level[1] + first + spare)
  level[2] = math.min(room, level[2] + second + spare)
end
local wait = 0
if at > now then
  wait = at - now + math.ceil(2 / rate)
elseif level[class] >= 1 then
  level[class] = level[class] - 1
  if level[class] >= 1 then wait = -1 end
else
  local flow = rate / 2
  if level[3 - class] >= room then flow = rate end
  wait = math.ceil((1 - level[class]) / flow)
end
redis.call('HSET', KEYS[1], '1', string.format('%.9f', level[1]), '2', string.format('%.9f', level[2]), 'at', string.format('%.0f', at))
redis.call('PEXPIRE', KEYS[1], 3600000)
return wait`)

	// pauseScript empties a bucket until ARGV[1] milliseconds have passed, or until later if it was told so before.
	pauseScript = redis.NewScript(`
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local at = tonumber(redis.call('HGET', KEYS[1], 'at')) or now
if at - now > tonumber(ARGV[2]) then at = now end
at = math.max(at, now + tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], '1', '0', '2', '0', 'at', string.format('%.0f', at))
redis.call('PEXPIRE', KEYS[1], 3600000)
return 0`)
)

// take spends a permit of the shared bucket, or says how long to wait.
func take(ctx context.Context, client redis.UniversalClient, key string, r rate, class Class) (answer, error) {
	n, err := takeScript.Run(ctx, client, []string{key}, int(class)+1, r.perMilli, r.room, longestPause.Milliseconds()).Int64()
	if err != nil {
		return answer{}, fmt.Errorf("take a permit: %w", err)
	}
	return answer{wait: time.Duration(max(0, n)) * time.Millisecond, left: n < 0}, nil
}

// pause empties the shared bucket until some time has passed.
func pause(ctx context.Context, client redis.UniversalClient, key string, after time.Duration) error {
	if err := pauseScript.Run(ctx, client, []string{key}, after.Milliseconds(), longestPause.Milliseconds()).Err(); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	return nil
}
