-- Gives back the turn that pace.lua gave to a call, if the call is not made after all.
-- KEYS[1]: the sorted set of calls, as in pace.lua
-- ARGV: the call's name in the set
-- Returns 1 if the call was in the set, else 0.
return redis.call('ZREM', KEYS[1], ARGV[1])
