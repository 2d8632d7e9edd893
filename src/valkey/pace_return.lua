-- Gives back the turn of a call that is not made.
-- KEYS[1]: the recorded calls, as in pace.lua
-- ARGV: the call's name
-- Returns 1 if the call was recorded in KEYS[1], else 0.
return redis.call('ZREM', KEYS[1], ARGV[1])
