-- Records calls that were made, or are made now. A call that is known already gets the new time.
-- KEYS[1]: as in pace.lua
-- ARGV: the window in microseconds; then for each call its name and its age in microseconds
local calls, window = KEYS[1], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', calls, '-inf', now - window)
for i = 2, #ARGV, 2 do
  redis.call('ZADD', calls, now - ARGV[i + 1], ARGV[i])
end
return redis.call('ZCARD', calls)
