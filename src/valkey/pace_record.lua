-- Records calls that were made, or are made now. If a call is recorded already, the later of the
-- recorded and the new time counts.
-- KEYS[1]: the sorted set of calls that pace.lua describes, with their times and names
-- ARGV: the window in microseconds; then for each call its name and its age in microseconds
-- Returns the number of calls in the window.
local calls, window = KEYS[1], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', calls, '-inf', now - window)
for i = 2, #ARGV, 2 do
  local made = now - ARGV[i + 1]
  local known = redis.call('ZSCORE', calls, ARGV[i])
  if made > now - window and not (known and tonumber(known) > made) then
    redis.call('ZADD', calls, made, ARGV[i])
  end
end
return redis.call('ZCARD', calls)
