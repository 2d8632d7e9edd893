-- Releases a lease. If no vector was written, deletes its key. If one was written, sets the key to
-- 'done', even if the lease has expired. Changes nothing if another call has the lease or has set 'done'.
-- KEYS[1]: as in lease.lua
-- ARGV: the token; for how many milliseconds the key says 'done', or 0 if no vector was written
-- Returns 0 if another call has the lease or has set 'done', else 1.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[1], 'done', 'PX', ARGV[2])
elseif holder then
  redis.call('DEL', KEYS[1])
end
return 1
