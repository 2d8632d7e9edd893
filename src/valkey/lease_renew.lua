-- Renews a lease, if its holder still has it.
-- KEYS[1]: as in lease.lua
-- ARGV: the token; after how many milliseconds the lease expires
-- Returns 1 if the lease was renewed, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
