-- Keeps results in the order of their publication, each once, however many gateways heard it.
-- KEYS: the task's key for each result. ARGV: milliseconds to live, most bytes of a task, most results of a task; then for each
-- result: since, hash, nth, hash before, nth before, payload. See link.rs for the reasoning. An nth of 0: nobody has heard it, a
-- worker has set it.
-- "index" is 12 digits of bytes in all, then for each result in order 36 characters: hash (16), time (16), field (4).
local clock = redis.call('TIME')
local now = string.format('%010d%06d', clock[1], clock[2])
local set = '9999999999999999' -- the time of what was set and nobody has heard
local refused = 0

-- Where the nth result of this content since then is.
local function place(index, since, hash, nth)
  for at = 13, #index, 36 do
    if string.sub(index, at, at + 15) == hash and string.sub(index, at + 16, at + 31) >= since then
      nth = nth - 1
      if nth == 0 then return at end
    end
  end
end

for i, key in ipairs(KEYS) do
  local a = 6 * i - 3
  local since, hash, before, payload = ARGV[a + 1], ARGV[a + 2], ARGV[a + 4], ARGV[a + 6]
  local nth = tonumber(ARGV[a + 3])
  local index = redis.pcall('HGET', key, 'index')
  if type(index) == 'table' then
    refused = refused + 1
  else
    index = index or '000000000000'
    local at
    if nth == 0 then at = place(index, '', hash, 1) else at = place(index, since, hash, nth) end
    if at then
      local known = index
      if nth > 0 and string.sub(index, at + 16, at + 31) == set then
        index = string.sub(index, 1, at + 15) .. now .. string.sub(index, at + 32)
      end
      local earlier = before ~= '' and place(index, since, before, tonumber(ARGV[a + 5]))
      if earlier and earlier > at then
        local behind = earlier + 36
        index = string.sub(index, 1, at - 1) .. string.sub(index, at + 36, behind - 1)
          .. string.sub(index, at, at + 35) .. string.sub(index, behind)
      end
      if index ~= known then redis.call('HSET', key, 'index', index) end
    else
      local count, bytes = (#index - 12) / 36, tonumber(string.sub(index, 1, 12)) + #payload
      if bytes > tonumber(ARGV[2]) or count >= tonumber(ARGV[3]) then
        refused = refused + 1
      else
        local field = string.format('%04d', count)
        index = string.format('%012d', bytes) .. string.sub(index, 13) .. hash .. (nth == 0 and set or now) .. field
        redis.call('HSET', key, 'index', index, field, payload)
        redis.call('PEXPIRE', key, ARGV[1])
      end
    end
  end
end
return refused
