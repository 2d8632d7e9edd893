-- Gives back the turns of calls that are not made.
-- KEYS[1]: as in pace.lua
-- ARGV: the calls' names
return redis.call('ZREM', KEYS[1], unpack(ARGV))
