-- Releases a lease. If the caller knows that the vector is in the bucket, sets the lease's value to 'done',
-- even if the lease has expired. Otherwise, deletes the lease. Changes nothing if another caller holds the
-- lease, or if the value is already 'done'.
-- KEYS[1]: the lease. Its value is its holder's token, or 'done'.
-- ARGV: the caller's token; for how many milliseconds the value is 'done', or 0 to delete the lease
-- Returns 0 if another caller holds the lease or the value was already 'done', else 1.
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
