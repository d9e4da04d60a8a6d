//! All Lua of this service. Redis runs a script as one step, and nothing else
//! meanwhile.

/// A script with the hash by which Redis knows it once it has run.
pub(super) struct Lua {
    pub(super) text: &'static str,
    pub(super) hash: String,
}

impl Lua {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }
}

/// Carries a batch out, whole or not at all.
///
/// A script that raises an error keeps what it has written so far. So every
/// check comes first, and each way in which a later write could still fail is
/// one of them: wrong types raise in HLEN, ZCARD and GET, what is no number that
/// INCR takes and a double tells exactly is told; missing ACL rights
/// are asked for; a read-only replica, a failing disk, too few replicas and
/// full memory fail the first write of a script and no later one. While the slot
/// moves to another node of a cluster, a key that is not there cannot be made; what
/// makes a key is refused at once by then, since the key is one of `KEYS`, and of
/// what may empty one and fill it again, the script finds out. Full memory
/// fails only writes that take memory, so puts come first, and a batch of
/// deletions, which does not start with such a write, goes through. The trail
/// entry and the revision are written after both: they must not keep room from
/// being made.
///
/// Revisions are compared as 8 bytes: Lua's numbers are doubles and would
/// confuse neighbours above 2^53.
///
/// - `KEYS[1]` records: hash of key -> revision (8 bytes, big-endian) .. bytes
/// - `KEYS[2]` index: sorted set of the keys, all of score 0
/// - `KEYS[3]` revision of the workspace: string, a number
/// - `KEYS[4]` outcome under the request id; missing if the batch has none
/// - `ARGV[1]` `1` if the workspace must have no record
/// - `ARGV[2]` most records of a kind afterwards, or empty
/// - `ARGV[3]` outcome to remember
/// - `ARGV[4]` for how many milliseconds
/// - `ARGV[5]` `1` if WAIT follows: a replay is then written again, so that
///   WAIT waits for the replicas to have it
/// - `ARGV[6]` revision before the workspace's first
/// - `ARGV[7]` that kind: what its keys start with, up to a slash
/// - `ARGV[8]` revision .. bytes of a trail entry, or empty
/// - `ARGV[9]` most trail entries, `ARGV[10]` most to drop at once
/// - `ARGV[11]` `1` if the workspace keeps its revision
/// - then for each operation: key; expectation (empty, `absent` or 8 bytes);
///   `put`, `delete` or `nothing`; revision .. bytes to put
///
/// Replies `{done, revision of the workspace or 0 if it kept its own}`, `{replayed, outcome}`, `{conflict, operation from 0}`,
/// `{not_empty}`, `{full}`, `{shredded}`, `{malformed}` or `{denied}`.
pub(super) const COMMIT: &str = r"
local records, index, revision, request = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local first, step = 12, 4

-- Fails if the slot is moving: this key is never there.
local function moving()
  local found = redis.pcall('HLEN', records .. ':')
  return type(found) == 'table' and found.err
end

-- Bounds of a kind of keys: the character after the slash is the zero.
local function within(kind)
  return '[' .. kind, '(' .. string.sub(kind, 1, -2) .. '0'
end

if redis.call('HGET', records, 't/shredded') then
  return {'shredded'}
end

if request then
  local outcome = redis.call('GET', request)
  if outcome then
    if ARGV[5] == '1' then
      redis.call('PEXPIREAT', request, redis.call('PEXPIRETIME', request))
    end
    return {'replayed', outcome}
  end
end

local count = redis.call('HLEN', records)
redis.call('ZCARD', index)
local number = redis.call('GET', revision) or ARGV[6]
if not (string.match(number, '^[1-9]%d*$') and tonumber(number) < 9007199254740991) then
  return {'malformed'}
end
number = tonumber(number) + 1
if ARGV[1] == '1' and count > 0 then
  return {'not_empty'}
end

local kind, added, removed, advances = ARGV[7], 0, 0, ARGV[8] ~= ''
local deletes = false
for i = first, #ARGV, step do
  local expect, write = ARGV[i + 1], ARGV[i + 2]
  local current = redis.call('HGET', records, ARGV[i])
  if current and #current < 8 then
    return {'malformed'}
  end
  local found = current and string.sub(current, 1, 8)
  if (expect == 'absent' and current) or (#expect == 8 and found ~= expect) then
    return {'conflict', (i - first) / step}
  end
  deletes = deletes or write == 'delete'
  advances = advances or (write ~= 'nothing' and ARGV[11] ~= '1')
  if string.sub(ARGV[i], 1, #kind) == kind then
    if write == 'put' and not current then
      added = added + 1
    elseif write == 'delete' and current then
      removed = removed + 1
    end
  end
end
if ARGV[2] ~= '' and added > 0 then
  local found = redis.call('ZLEXCOUNT', index, within(kind))
  if found + added - removed > tonumber(ARGV[2]) then
    return {'full'}
  end
end

-- The newest entry has the least key.
local entry, dropped
if ARGV[8] ~= '' then
  entry = 'a/' .. string.format('%016.0f', 9007199254740991 - number)
  local least, most = within('a/')
  local surplus = redis.call('ZLEXCOUNT', index, least, most) + 1 - tonumber(ARGV[9])
  surplus = math.max(0, math.min(surplus, tonumber(ARGV[10])))
  dropped = redis.call('ZREVRANGEBYLEX', index, most, least, 'LIMIT', 0, surplus)
end

if not (redis.acl_check_cmd('HSET', records, '', '')
    and redis.acl_check_cmd('HDEL', records, '')
    and redis.acl_check_cmd('ZADD', index, '0', '')
    and redis.acl_check_cmd('ZREM', index, '')
    and redis.acl_check_cmd('SET', revision, '', 'NX')
    and redis.acl_check_cmd('INCR', revision)
    and redis.acl_check_cmd('SET', request or records, '', 'PX', '1')) then
  return {'denied'}
end
if deletes and moving() then
  return redis.error_reply('TRYAGAIN the slot is moving')
end

for i = first, #ARGV, step do
  if ARGV[i + 2] == 'put' then
    redis.call('HSET', records, ARGV[i], ARGV[i + 3])
    redis.call('ZADD', index, 0, ARGV[i])
  end
end
for i = first, #ARGV, step do
  if ARGV[i + 2] == 'delete' then
    redis.call('HDEL', records, ARGV[i])
    redis.call('ZREM', index, ARGV[i])
  end
end
if entry then
  redis.call('HSET', records, entry, ARGV[8])
  redis.call('ZADD', index, 0, entry)
end
for _, key in ipairs(dropped or {}) do
  redis.call('HDEL', records, key)
  redis.call('ZREM', index, key)
end
if advances then
  redis.call('SET', revision, ARGV[6], 'NX')
  redis.call('INCR', revision)
end
if request then
  redis.call('SET', request, ARGV[3], 'PX', ARGV[4])
end
return {'done', advances and number or 0}
";

/// Lists records in byte order of their keys, index and records at one moment.
///
/// - `KEYS[1]` records, `KEYS[2]` index, as above
/// - `ARGV[1]`, `ARGV[2]` bounds as ZRANGEBYLEX takes them
/// - `ARGV[3]` most records
///
/// Replies key, record, key, record, ...
pub(super) const SCAN: &str = r"
local found = {}
local keys = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
for _, key in ipairs(keys) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('HGET', KEYS[1], key)
end
return found
";

/// Destroys all records of a workspace and leaves a tombstone.
///
/// Every check comes before the first write, as in [`COMMIT`]. Removal comes
/// first: it takes no memory, so full memory does not stop it, nor, then, the
/// tombstone.
///
/// - `KEYS` records, index, revision, as above
/// - `ARGV[1]` key of the tombstone
/// - `ARGV[2]` its revision (8 bytes, big-endian) .. bytes
/// - `ARGV[3]` revision before the workspace's first
/// - `ARGV[4]` `1` if WAIT follows: a tombstone that lies there already is then
///   written again, so that WAIT waits for the replicas to have it
///
/// Replies `{records destroyed, revision .. bytes of the tombstone}` or
/// `{denied}`.
pub(super) const SHRED: &str = r"
local records, index, revision = KEYS[1], KEYS[2], KEYS[3]
local tombstone = redis.call('HGET', records, ARGV[1])
if tombstone then
  if ARGV[4] == '1' then
    redis.call('HSET', records, ARGV[1], tombstone)
  end
  return {0, tombstone}
end

local count = redis.call('HLEN', records)
redis.call('ZCARD', index)
redis.call('GET', revision)
if not (redis.acl_check_cmd('UNLINK', records, index)
    and redis.acl_check_cmd('HSET', records, '', '')
    and redis.acl_check_cmd('ZADD', index, '0', '')
    and redis.acl_check_cmd('SET', revision, '', 'NX')
    and redis.acl_check_cmd('INCR', revision)) then
  return {'denied'}
end
-- As above: what is removed could not be made again while the slot is moving.
local probe = redis.pcall('HLEN', records .. ':')
if type(probe) == 'table' and probe.err then
  return redis.error_reply('TRYAGAIN the slot is moving')
end

redis.call('UNLINK', records, index)
redis.call('HSET', records, ARGV[1], ARGV[2])
redis.call('ZADD', index, 0, ARGV[1])
redis.call('SET', revision, ARGV[3], 'NX')
redis.call('INCR', revision)
return {count, ARGV[2]}
";
