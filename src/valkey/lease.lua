-- Takes the lease of a picture's call, if it is free.
-- KEYS[1]: the lease. It contains its holder's token, or 'done' for a while after the vector was
--          written to the bucket.
-- ARGV: the token; after how many milliseconds the lease expires; whether 'done' counts as free (1 or 0)
-- Returns 'acquired'; 'held' if another call holds the lease; or 'done' if it does not count as free.
local holder = redis.call('GET', KEYS[1])
if holder == 'done' and ARGV[3] == '0' then
  return 'done'
end
if holder and holder ~= 'done' then
  return 'held'
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'acquired'
