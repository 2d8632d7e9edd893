-- Takes a turn for a call to NVIDIA, if the limit on calls per window allows a call now.
-- KEYS[1]: a sorted set of the calls in the last window, by their times in microseconds. A call's
--          name is its replica's id, a colon, and a number.
-- ARGV: the most calls in a window; the window in microseconds; the replica's id; the call's number,
--       or '' to take no turn; how many calls, the oldest first, are searched for calls of other replicas
-- Returns whether a turn was taken (1 or 0); how long a call must wait for a turn, or 0 if a turn was
-- taken or could be taken now; and the ages of the other replicas' calls, the oldest first. Times are in
-- microseconds.
local calls = KEYS[1]
local limit, window, replica = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local number, max_searched = ARGV[4], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', calls, '-inf', now - window)
-- If another Valkey server takes over, its clock may be behind. A call in its future counts as made now.
for _, call in ipairs(redis.call('ZRANGEBYSCORE', calls, string.format('(%.0f', now), '+inf')) do
  redis.call('ZADD', calls, now, call)
end

local count, granted, wait = redis.call('ZCARD', calls), 0, 0
if count >= limit then
  -- When this call and all older ones have left the window, there is room for another call.
  local blocking = redis.call('ZRANGE', calls, count - limit, count - limit, 'WITHSCORES')
  wait = blocking[2] + window - now
end
local prefix, ages = replica .. ':', {}
local oldest = redis.call('ZRANGE', calls, 0, max_searched - 1, 'WITHSCORES')
for i = 1, #oldest, 2 do
  if string.sub(oldest[i], 1, #prefix) ~= prefix then
    ages[#ages + 1] = now - oldest[i + 1]
  end
end
if wait == 0 and number ~= '' then
  redis.call('ZADD', calls, now, prefix .. number)
  granted = 1
end
return { granted, wait, ages }
