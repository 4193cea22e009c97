-- Keeps results in the order of their publication, each once, however many gateways heard it.
-- docs/kept-results.md explains the rules.
--
-- KEYS: the key of each result's task. ARGV: milliseconds to live, most bytes of a task, bytes that
-- a result costs besides its payload; then for each result: since, hash, nth, number, hash before,
-- nth before, payload. An nth of 0: it was not received, a worker has set it. An nth of -1: it is no
-- result, but a line that says that an audio file is complete. `number`: its result_id, as far as
-- the gateway knows. Returns how many results were refused.
--
-- The field "index" is 12 digits of bytes in all, then an entry of 36 characters for each result,
-- in order: hash (16), time (16), name of the field with the payload (4; '----' once the payload is
-- gone). The field "ends" has the lines about audio files. The field "lost" is there once a result was refused. A result's number is its place in the
-- index, counted from 0, unless "numbers" says otherwise: 20 characters for each place at which the
-- count goes on with a greater number (place 10, number 10).

local clock = redis.call('TIME')
local now = string.format('%010d%06d', clock[1], clock[2])
local retain, bytes_max, cost = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local NOT_PUBLISHED = '9999999999999999' -- the time of what was set and not received
local ENDS_MAX = 65536 -- bytes of lines about audio files
local refused = 0

-- The tasks of this call. An index may be long, so it is read once and written once, and new
-- entries are collected in `tail`: appending each to the index would copy it as many times.
local tasks = {}

local function read(key)
  local fields = redis.pcall('HMGET', key, 'index', 'numbers')
  -- The error of a key that another program uses.
  if fields.err then return {is_foreign = true} end
  local index = fields[1] or '000000000000'
  local numbers = {}
  local digits = string.rep('%d', 10)
  for place, number in string.gmatch(fields[2] or '', '(' .. digits .. ')(' .. digits .. ')') do
    numbers[#numbers + 1] = {tonumber(place), tonumber(number)}
  end
  local bytes = tonumber(string.sub(index, 1, 12))
  return {entries = string.sub(index, 13), tail = '', bytes = bytes, writes = {}, numbers = numbers}
end

-- The number of the result at a place: that of the last stated one before it, counted on.
local function number_at(task, place)
  local from, number = 0, 0
  for _, stated in ipairs(task.numbers) do
    if stated[1] > place then break end
    if stated[2] > number + stated[1] - from then from, number = stated[1], stated[2] end
  end
  return number + place - from
end

-- A gateway knows that at least this many results came before the one at this place. Numbers only
-- grow: whoever counted fewer has missed some.
local function state_number(task, place, number)
  if number <= number_at(task, place) then return end
  task.numbers[#task.numbers + 1] = {place, number}
  table.sort(task.numbers, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
  local parts = {}
  for _, stated in ipairs(task.numbers) do
    -- Of several at one place the last one counts, which is the greatest.
    if #parts > 0 and string.sub(parts[#parts], 1, 10) == string.format('%010d', stated[1]) then
      parts[#parts] = nil
    end
    parts[#parts + 1] = string.format('%010d%010d', stated[1], stated[2])
  end
  task.writes[#task.writes + 1] = 'numbers'
  task.writes[#task.writes + 1] = table.concat(parts)
  task.is_changed = true
end

local function join(task)
  if task.tail ~= '' then
    task.entries = task.entries .. task.tail
    task.tail = ''
  end
end

-- Where the nth result of this content is in a text of entries, of those that were stored since
-- then. If there are fewer, returns nil and how many are missing.
local function find(entries, since, hash, nth)
  -- Letters are rarer than digits in entries, which makes the search for one a lot faster.
  local letter = string.find(hash, '%a') or 1
  local needle = string.sub(hash, letter)
  local from = 1
  while true do
    local found = string.find(entries, needle, from, true)
    if not found then return nil, nth end
    local at = found - letter + 1
    if at > 0 and at % 36 == 1 and string.sub(entries, at, at + 15) == hash
      and string.sub(entries, at + 16, at + 31) >= since then
      nth = nth - 1
      if nth == 0 then return at end
    end
    from = found + 1
  end
end

local function place(task, since, hash, nth)
  local at, missing = find(task.entries, since, hash, nth)
  if at then return at end
  at = find(task.tail, since, hash, missing)
  return at and #task.entries + at
end

-- The name of the nth payload: 0000 to 9999, then a000 and so on with base 36.
local function field(n)
  if n < 10000 then return string.format('%04d', n) end
  n = n - 10000
  local name = string.char(97 + math.floor(n / 46656))
  for _, unit in ipairs({1296, 36, 1}) do
    local digit = math.floor(n / unit) % 36
    name = name .. string.sub('0123456789abcdefghijklmnopqrstuvwxyz', digit + 1, digit + 1)
  end
  return name
end

-- Drops payloads that are older than `retain`. Their entries stay, because gateways go on counting
-- them.
local function sweep(key, task)
  local age = tonumber(retain) * 1000
  local cutoff = string.format('%016.0f', math.max(0, tonumber(now) - age))
  local parts = {}
  join(task)
  for at = 1, #task.entries, 36 do
    local name = string.sub(task.entries, at + 32, at + 35)
    if name ~= '----' and string.sub(task.entries, at + 16, at + 31) < cutoff then
      task.bytes = task.bytes - cost - redis.call('HSTRLEN', key, name)
      redis.call('HDEL', key, name)
      name = '----'
      task.is_changed = true
    end
    parts[#parts + 1] = string.sub(task.entries, at, at + 31) .. name
  end
  task.entries = table.concat(parts)
  task.is_swept = true
end

-- A result that is there already. Its time or its place may have to change. Returns where it is
-- then.
local function confirm(task, at, since, is_heard, before, nth_before)
  join(task)
  local entries = task.entries
  if is_heard and string.sub(entries, at + 16, at + 31) == NOT_PUBLISHED then
    -- The worker has published what it had set.
    entries = string.sub(entries, 1, at + 15) .. now .. string.sub(entries, at + 32)
  end
  local earlier = before ~= '' and find(entries, since, before, nth_before)
  if earlier and earlier > at then
    -- A gateway that missed the earlier one stored this one first. Without the move the two would
    -- stay in the wrong order for every client.
    local behind = earlier + 36
    entries = string.sub(entries, 1, at - 1) .. string.sub(entries, at + 36, behind - 1)
      .. string.sub(entries, at, at + 35) .. string.sub(entries, behind)
    at = earlier
  end
  if entries ~= task.entries then
    task.entries = entries
    task.is_changed = true
  end
  return at
end

for i, key in ipairs(KEYS) do
  local a = 7 * i - 4
  local since, hash, before, payload = ARGV[a + 1], ARGV[a + 2], ARGV[a + 5], ARGV[a + 7]
  local nth, nth_before = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 6])
  local number = tonumber(ARGV[a + 4])
  local is_heard, is_end = nth > 0, nth < 0
  local task = tasks[key] or read(key)
  tasks[key] = task
  -- What was set has no time, so it counts whatever `since` is.
  local at = not task.is_foreign and not is_end
    and place(task, is_heard and since or '', hash, math.max(nth, 1))
  if task.is_foreign then
    refused = refused + 1
  elseif is_end then
    local ends = redis.call('HGET', key, 'ends') or ''
    if #ends + #payload <= ENDS_MAX and not string.find(ends, payload, 1, true) then
      redis.call('HSET', key, 'ends', ends .. payload)
    end
    task.lives_on = true
  elseif at then
    at = confirm(task, at, since, is_heard, before, nth_before)
    state_number(task, (at - 1) / 36, number)
  else
    local size = cost + #payload
    local spot = (#task.entries + #task.tail) / 36
    if task.bytes + size > bytes_max and not task.is_swept then sweep(key, task) end
    if task.bytes + size > bytes_max then
      refused = refused + 1
      task.writes[#task.writes + 1] = 'lost'
      task.writes[#task.writes + 1] = '1'
      -- It has a number all the same: the next one goes on behind it.
      state_number(task, spot, number + 1)
    else
      local name = field(spot)
      task.tail = task.tail .. hash .. (is_heard and now or NOT_PUBLISHED) .. name
      task.bytes = task.bytes + size
      task.writes[#task.writes + 1] = name
      task.writes[#task.writes + 1] = payload
      state_number(task, spot, number)
    end
    task.is_changed = true
    task.lives_on = true
  end
end

for key, task in pairs(tasks) do
  if task.is_changed then
    join(task)
    local index = string.format('%012d', task.bytes) .. task.entries
    redis.call('HSET', key, 'index', index, unpack(task.writes))
  end
  if task.lives_on then redis.call('PEXPIRE', key, retain) end
end
return refused
