-- The breaker of one subscription: the transitions of domain/breaker.ts, word for word.
-- KEYS[1] state (JSON). ARGV: now in ms ('' for this server's clock), then the call:
--   report attempts failures trailing | ask holder lease_ms known_open_count | finish holder outcome | read
-- Answers phase, whether this call changed it, ms that it stays open, open count, ms since it closed (-1: never),
-- reason, whether a probe was granted, ms to wait for one.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local function pristine()
  return { phase = 'closed', consecutive = 0, window = {}, openUntilMs = 0, openCount = 0, probeUntilMs = 0,
    probeHolder = '', successes = 0, closedAtMs = 0, reason = '' }
end
local raw = redis.call('GET', KEYS[1])
local s = raw and cjson.decode(raw) or pristine()
local before, count_before = s.phase, s.openCount

local function open(reason, forget_closing)
  if forget_closing then s.closedAtMs = 0 end
  local count = s.openCount
  if s.closedAtMs > 0 and now - s.closedAtMs >= 600000 then count = 0 end
  count = count + 1
  local closed_at = s.closedAtMs
  s = pristine()
  s.phase, s.openCount, s.reason, s.closedAtMs = 'open', count, reason, closed_at
  s.openUntilMs = now + math.min(600000, 30000 * 2 ^ math.min(count - 1, 10))
end

local granted, wait = 0, 0
if ARGV[2] == 'report' then
  local attempts, failures, trailing = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  if s.phase == 'closed' then
    local at = math.floor(now / 10000)
    local window = {}
    for _, b in ipairs(s.window) do
      if b.at > at - 6 and b.at <= at then window[#window + 1] = b end
    end
    local last = window[#window]
    if last == nil or last.at ~= at then
      last = { at = at, attempts = 0, failures = 0 }
      window[#window + 1] = last
    end
    last.attempts = last.attempts + attempts
    last.failures = last.failures + failures
    s.window = window
    if failures < attempts then s.consecutive = trailing else s.consecutive = s.consecutive + failures end
    local all, bad = 0, 0
    for _, b in ipairs(window) do
      all = all + b.attempts
      bad = bad + b.failures
    end
    if s.consecutive >= 5 then
      open('consecutive_failures', false)
    elseif all >= 20 and bad * 2 >= all then
      open('failure_rate', false)
    end
  end
elseif ARGV[2] == 'ask' then
  local holder, lease, known = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  if s.phase == 'closed' and s.closedAtMs == 0 and known > 0 then
    s = pristine()
    s.phase, s.openCount, s.openUntilMs = 'open', known, now
  end
  if s.phase == 'open' and now < s.openUntilMs then
    wait = s.openUntilMs - now
  elseif s.phase ~= 'closed' and now < s.probeUntilMs then
    wait = s.probeUntilMs - now
  elseif s.phase ~= 'closed' then
    s.phase, s.probeUntilMs, s.probeHolder = 'half_open', now + lease, holder
    granted = 1
  end
elseif ARGV[2] == 'finish' then
  local holder, outcome = ARGV[3], ARGV[4]
  if s.phase == 'half_open' and s.probeHolder == holder then
    s.probeUntilMs, s.probeHolder = 0, ''
    if outcome == 'failed' then
      open('probe_failed', true)
    elseif outcome == 'succeeded' and s.successes + 1 < 3 then
      s.successes = s.successes + 1
    elseif outcome == 'succeeded' then
      local count = s.openCount
      s = pristine()
      s.openCount, s.closedAtMs = count, now
    end
  end
end

if ARGV[2] ~= 'read' then
  local kept = math.max(s.openUntilMs, s.probeUntilMs, now) - now + 3600000
  redis.call('SET', KEYS[1], cjson.encode(s), 'PX', string.format('%.0f', kept))
end
local changed = (s.phase ~= before or s.openCount ~= count_before) and s.phase ~= 'half_open'
local open_for = s.phase == 'open' and math.max(0, s.openUntilMs - now) or 0
local closed_ago = s.closedAtMs > 0 and now - s.closedAtMs or -1
return { s.phase, changed and 1 or 0, open_for, s.openCount, closed_ago, s.reason, granted, wait }
