-- Counts requests of a client by the generic cell rate algorithm (ITU-T I.371).
-- KEYS[1]: the client's theoretical arrival time in microseconds
-- ARGV: the time that the requests take at the client's limit, in microseconds; by how much the
--       arrival time may be ahead of the clock, in microseconds
-- Returns how long the client must wait, or 0 if the requests are counted; and by how much the arrival
-- time is now ahead of the clock. Both are in microseconds.
local delay, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local wait = arrival + delay - (now + ahead)
if wait > 0 then
  return { wait, arrival - now }
end
arrival = arrival + delay
redis.call('SET', KEYS[1], string.format('%d', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
return { 0, arrival - now }
