-- Takes slots of a rate: takeSlots() of domain/bucket.ts, word for word. Numbers are doubles on both sides.
-- KEYS[1] state. ARGV: now in µs ('' for this server's clock), interval, tolerance, horizon (µs), how many.
-- Answers granted, start and wait as text: Redis would cut doubles to integers.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local interval, tolerance, horizon, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local base = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now - tolerance)
local limit = now + horizon
local possible = 0
if base <= limit then possible = math.floor((limit - base) / interval) + 1 end
local granted = math.min(want, possible)
local next = base + granted * interval
local wait = 0
if granted < want then wait = math.max(0, next - limit) end
if granted > 0 then
  -- Once the slots that are left over are older than the tolerance, the state says nothing any more.
  local ttl = math.ceil((next + tolerance - now) / 1000) + 1000
  redis.call('SET', KEYS[1], string.format('%.17g', next), 'PX', string.format('%.0f', ttl))
end
return { string.format('%.17g', granted), string.format('%.17g', base - now), string.format('%.17g', wait) }
