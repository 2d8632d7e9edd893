-- Renews a lease, if the caller still holds it.
-- KEYS[1]: the lease. Its value is its holder's token.
-- ARGV: the caller's token; the milliseconds until the lease expires
-- Returns 1 if the lease was renewed, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
