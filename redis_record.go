package idempotency

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"github.com/redis/go-redis/v9"
)

// What a Redis key holds:
//
//	version (1), kind, token (16 bytes), fingerprint (32 bytes),
//	of a claim: its trace in milliseconds (13 digits), the progress
//	of a completed record: the response
//
// Whether a claim is outstanding or interrupted follows from what is left of the
// key's time: the key expires when lease and trace are over, and the claim is
// interrupted once no more than its trace is left. So a renewal writes nothing
// but the time, and needs no room.
const (
	recordVersion = 1

	kindClaim     = 0
	kindTookOver  = 1 // a claim that took over the key of another
	kindCompleted = 2

	tokenStart       = 2
	fingerprintStart = 18
	traceStart       = 50 // where the response of a completed record begins
	progressStart    = 63
)

// encodeHead returns what a record begins with, with room for a trace.
func encodeHead(claim Claim, kind byte) []byte {
	b := append(make([]byte, 0, progressStart), recordVersion, kind)
	b = append(b, claim.Token[:]...)
	return append(b, claim.Fingerprint[:]...)
}

// encodeClaim returns the record of a claim without progress. All traces have as
// many digits as the longest, so that they can be compared as texts.
func encodeClaim(claim Claim, trace time.Duration) []byte {
	b := append(encodeHead(claim, kindClaim), "0000000000000"...)
	for i, ms := len(b)-1, milliseconds(trace); ms > 0; i, ms = i-1, ms/10 {
		b[i] = byte('0' + ms%10)
	}
	return b
}

// decodeRecord reads a record and its trace in milliseconds. A claim is taken for
// outstanding. The Record of another request than asked's comes without progress
// and response: it may be cut after its head.
func decodeRecord(raw string, asked Claim) (rec Record, traceMS int64, err error) {
	if len(raw) < traceStart {
		return Record{}, 0, fmt.Errorf("%w: a Redis key with %d bytes", ErrUnreadable, len(raw))
	}
	if raw[0] != recordVersion {
		return Record{}, 0, fmt.Errorf("%w: a Redis key of version %d", ErrUnreadable, raw[0])
	}
	copy(rec.Claim.Token[:], raw[tokenStart:])
	copy(rec.Claim.Fingerprint[:], raw[fingerprintStart:])
	whole := rec.Claim.matches(asked)
	switch kind := raw[1]; {
	case kind == kindCompleted:
		rec.State = StateCompleted
		if whole {
			rec.Response = textBytes(raw[traceStart:])
		}
		return rec, 0, nil
	case kind > kindCompleted || len(raw) < progressStart:
		return Record{}, 0, fmt.Errorf("%w: a Redis key of kind %d with %d bytes", ErrUnreadable, kind, len(raw))
	}
	rec.State = StateOutstanding
	if whole && len(raw) > progressStart {
		rec.Progress = textBytes(raw[progressStart:])
	}
	digits, err := strconv.ParseUint(raw[traceStart:progressStart], 10, 44)
	if err != nil {
		return Record{}, 0, fmt.Errorf("%w: a Redis key with a malformed trace", ErrUnreadable)
	}
	return rec, int64(digits), nil
}

// decodeReply reads a record that came with what is left of its time.
func decodeReply(reply []any, asked Claim) (rec Record, left time.Duration, err error) {
	ms, _ := reply[0].(int64)
	raw, _ := reply[1].(string)
	rec, traceMS, err := decodeRecord(raw, asked)
	if err != nil {
		return Record{}, 0, err
	}
	switch {
	case traceMS == 0:
	case ms <= traceMS:
		rec.State = StateInterrupted
	default:
		ms-- // See lasts.
	}
	if ms < 0 || traceMS >= milliseconds(Forever) {
		return rec, Forever, nil
	}
	return rec, time.Duration(ms) * time.Millisecond, nil
}

// textBytes returns the bytes of a text that Redis has sent. They are read-only, as
// all that a Backend returns.
func textBytes(s string) []byte {
	if s == "" {
		return nil
	}
	return unsafe.Slice(unsafe.StringData(s), len(s))
}

// script is a Lua script. Redis knows it by its hash, once it was sent whole. It
// is what [redis.Script] is, and builds its command at once.
type script struct{ text, hash any }

func newScript(text string) script {
	hash := sha1.Sum([]byte(text))
	return script{text, hex.EncodeToString(hash[:])}
}

// run runs the script on the Redis key name.
func (s script) run(ctx context.Context, client redis.UniversalClient, name string, argv ...any) (any, error) {
	reply, err := process(ctx, client, s.byHash(name, argv...))
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		return process(ctx, client, s.byText(name, argv...))
	}
	return reply, err
}

// byHash and byText return the command that runs the script.
func (s script) byHash(name string, argv ...any) []any { return command("evalsha", s.hash, name, argv) }
func (s script) byText(name string, argv ...any) []any { return command("eval", s.text, name, argv) }

func command(verb string, script any, name string, argv []any) []any {
	return append(append(make([]any, 0, 10), verb, script, 1, name), argv...)
}

func process(ctx context.Context, client redis.UniversalClient, args []any) (any, error) {
	cmd := redis.NewCmd(ctx, args...)
	_ = client.Process(ctx, cmd) // The error is the command's.
	reply, err := cmd.Result()
	return reply, explained(err)
}

// readHead is what the scripts begin with that change a record. ARGV[1] is the
// record of a claim, or its head. A script that finds another record than this very
// claim, or nothing, leaves it as it is and returns its head. Else it returns 1 (nil
// would be an error to go-redis, at some cost).
const readHead = `
local head = redis.call('GETRANGE', KEYS[1], 0, 62)
local free = head == '' and redis.call('PTTL', KEYS[1]) == -2
local kind, trace = string.byte(head, 2), string.sub(head, 51, 63)
local version = string.byte(head, 1)
local claim = version == 1 and (kind == 0 or kind == 1) and string.find(trace, '^%d+$') and #trace == 13
local completed = version == 1 and kind == 2 and #head >= 50
local sameToken = (claim or completed) and string.sub(head, 3, 18) == string.sub(ARGV[1], 3, 18)
local thisClaim = sameToken and claim

-- given returns the trace that was given. A claim that took over keeps the longer one.
local function given()
  local given = string.sub(ARGV[1], 51, 63)
  if kind == 1 and trace > given then return trace end
  return given
end

-- interrupted reports whether the lease of a claim is over. In the last millisecond
-- of a key nothing is left, and it is there still: without a trace that counts as
-- the lease's.
local function interrupted(left)
  return claim and tonumber(trace) > 0 and left <= tonumber(trace)
end

-- lasts returns how long a record lasts that has a lease and a trace. Redis counts from
-- the begin of its millisecond: a lease that a trace follows would end too early.
local function lasts(lease, given)
  given = tonumber(given)
  if lease > 0 and given > 0 then lease = lease + 1 end
  return lease + given
end

-- last lets the record last for a lease and a trace, without a byte more.
local function last(lease, given)
  if given ~= trace then redis.call('SETRANGE', KEYS[1], 50, given) end
  redis.call('PEXPIRE', KEYS[1], lasts(lease, given))
end
`

var (
	// claimScript: ARGV are the record of the claim, its lease, whether it takes
	// over, and whether to find out first if all commands may be used. It returns 1,
	// or the progress that was taken over, or what is left of the time of a record
	// that was not claimed, and that record; only its head if it is completed and of
	// another request.
	claimScript = newScript(readHead + `
if ARGV[4] == '1' and redis.acl_check_cmd then
  for _, command in ipairs({{'SET', '', 'PX', '1'}, {'GET'}, {'GETRANGE', '0', '0'}, {'SETRANGE', '0', ''}, {'STRLEN'}, {'DEL'}, {'PTTL'}, {'PEXPIRE', '1'}, {'EVAL', '0'}}) do
    if not redis.acl_check_cmd(command[1], KEYS[1], unpack(command, 2)) then
      return redis.error_reply('NOPERM the user must have the right to ' .. command[1])
    end
  end
end
local left = redis.call('PTTL', KEYS[1])
local lease = tonumber(ARGV[2])
if left == -2 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', lasts(lease, given()))
  return 1
end
if thisClaim then
  last(lease, given())
  if kind == 1 then return redis.call('GETRANGE', KEYS[1], 63, -1) end
  return 1
end
local held, asked, any = string.sub(head, 19, 50), string.sub(ARGV[1], 19, 50), string.rep('\0', 32)
local same = held == asked or held == any or asked == any
if completed and not same then return {left, head} end
if not (interrupted(left) and same and ARGV[3] == '1') then
  return {left, redis.call('GET', KEYS[1])}
end
kind = 1
local longer = given()
local progress = redis.call('GETRANGE', KEYS[1], 63, -1)
redis.call('SET', KEYS[1], '\1\1' .. string.sub(ARGV[1], 3, 50) .. longer .. progress, 'PX', lasts(lease, longer))
return progress
`)
	// renewScript: ARGV are the record of the claim, its lease, the progress, and anything if
	// a claim that is gone must stay so.
	renewScript = newScript(readHead + `
local longer = given()
local lease = tonumber(ARGV[2])
if free then
  if ARGV[4] then return redis.error_reply('ERR the claim is not there') end
  redis.call('SET', KEYS[1], ARGV[1] .. ARGV[3], 'PX', lasts(lease, longer))
  return 1
end
if not thisClaim then return head end
if #ARGV[3] > 0 and #ARGV[3] > redis.call('STRLEN', KEYS[1]) - 63 then
  redis.call('SET', KEYS[1], string.sub(head, 1, 50) .. longer .. ARGV[3], 'PX', lasts(lease, longer))
else
  last(lease, longer)
end
return 1
`)
	// completeScript: ARGV are the head of the record, the response, and the expiry
	// (0 is for ever).
	completeScript = newScript(readHead + `
if not free and not thisClaim then return head end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
end
return 1
`)
	// releaseScript: ARGV[1] is the record of the claim, with the trace to leave.
	releaseScript = newScript(readHead + `
local longer = given()
if free then
  if tonumber(longer) > 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', tonumber(longer)) end
  return 1
end
if not thisClaim then return head end
if tonumber(longer) == 0 then
  redis.call('DEL', KEYS[1])
else
  last(0, longer)
end
return 1
`)
	// lookupScript returns what is left of the record's time, and the record, or 1.
	lookupScript = newScript(`
local left = redis.call('PTTL', KEYS[1])
if left == -2 then return 1 end
return {left, redis.call('GET', KEYS[1])}
`)
	// forgetScript: ARGV are the head of the record to delete, and its state. It
	// returns 1 if it did.
	forgetScript = newScript(readHead + `
if not sameToken then return 0 end
local state = '3'
if thisClaim then
  state = '1'
  if interrupted(redis.call('PTTL', KEYS[1])) then state = '2' end
end
if state ~= ARGV[2] then return 0 end
return redis.call('DEL', KEYS[1])
`)
)
