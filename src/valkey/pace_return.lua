-- Gives back the turn of a call that is not made.
-- KEYS[1]: the sorted set of calls that pace.lua describes
-- ARGV: the call's name in this set
-- Returns 1 if the call was in the set, else 0.
return redis.call('ZREM', KEYS[1], ARGV[1])
