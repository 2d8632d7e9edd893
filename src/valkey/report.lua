-- Reports that a replica runs or stops, and counts the replicas.
-- KEYS[1]: a sorted set of the replicas, by the times of their last reports in milliseconds
-- ARGV: the replica's id; after how many milliseconds without a report a replica counts as stopped,
--       or 0 if this replica stops
-- Returns whether the set already contained the replica (1 or 0), and the number of replicas now.
local replicas, id, expiry = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local was_known = redis.call('ZSCORE', replicas, id) and 1 or 0
if expiry == 0 then
  redis.call('ZREM', replicas, id)
else
  redis.call('ZADD', replicas, now, id)
  redis.call('ZREMRANGEBYSCORE', replicas, '-inf', now - expiry)
  redis.call('PEXPIRE', replicas, expiry)
end
return { was_known, redis.call('ZCARD', replicas) }
