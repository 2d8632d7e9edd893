-- Acquires the lease for computing a picture's vector, if the lease is free.
-- KEYS[1]: the lease. Its value is its holder's token, or 'done' for a while after the vector was
--          written to the bucket.
-- ARGV: the caller's token; the milliseconds until the lease expires; whether 'done' counts as free (1 or 0)
-- Returns 'acquired'; 'held' if another caller holds the lease; or 'done' if the value is 'done' and does not
--          count as free.
local value = redis.call('GET', KEYS[1])
if value == 'done' and ARGV[3] == '0' then
  return 'done'
end
if value and value ~= 'done' then
  return 'held'
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'acquired'
