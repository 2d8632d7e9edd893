-- Counts requests of a client if its limit allows them, by the generic cell rate algorithm (ITU-T
-- I.371).
-- KEYS[1]: the client's theoretical arrival time, in microseconds since 1970. At this time, the next
-- request would arrive if the client had kept the limit's interval between two requests.
-- ARGV[1], the cost: the number of requests multiplied by this interval
-- ARGV[2], the burst: by how much the arrival time may be ahead of the clock
-- Both are in microseconds.
-- Returns how long the client must wait before it tries again, or 0 if the requests are counted; and by
-- how much the arrival time is now ahead of the clock. Both are in microseconds.
local cost, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local wait = arrival + cost - (now + burst)
if wait > 0 then
  return { wait, arrival - now }
end
arrival = arrival + cost
-- `PX` counts from the start of the current millisecond, so one millisecond is added.
redis.call('SET', KEYS[1], string.format('%d', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
return { 0, arrival - now }
