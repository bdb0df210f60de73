package model

// A Mutant is one rule of the protocol, broken. The checks must notice each.
type Mutant string

// The mutants of the store.
const (
	ClaimNotAtomic           Mutant = "Claim looks and claims in two steps"
	TokensShared             Mutant = "all requests have one token"
	InterruptedIsFree        Mutant = "Claim finds an interrupted key free"
	InterruptedIsOutstanding Mutant = "an interrupted key stays outstanding"
	TraceForgotten           Mutant = "the end of a lease frees the key, whatever its trace"
	JudgedByAskersTerms      Mutant = "Claim without a trace finds an interrupted key free"
	TakeOverNotAtomic        Mutant = "Claim looks and takes over in two steps"
	TakeOverOutstanding      Mutant = "Claim takes over an outstanding key"
	TakeOverOtherFingerprint Mutant = "Claim takes over the key of another fingerprint"
	RecoveredOnce            Mutant = "Claim does not take over from a claim that took over"
	RepeatedClaimForgets     Mutant = "Claim repeated forgets that it took over"
	RepeatedClaimSilent      Mutant = "Claim repeated does not tell that it took over"
	RenewUnfenced            Mutant = "Renew claims what another has claimed"
	RenewOverTookOver        Mutant = "Renew claims the key back that was taken over"
	RenewOverResponse        Mutant = "Renew makes its own response outstanding"
	RenewDoesNotRevive       Mutant = "Renew leaves an interrupted claim interrupted"
	RenewForgets             Mutant = "Renew forgets that its claim took over"
	CompleteOverClaim        Mutant = "Complete replaces another's claim"
	CompleteOverTookOver     Mutant = "Complete of the first owner replaces a claim that took over"
	CompleteOverInterrupted  Mutant = "Complete replaces another's interrupted claim"
	CompleteOverResponse     Mutant = "Complete replaces another's response"
	ReleaseUnfenced          Mutant = "Release deletes another's claim"
	ReleaseOverInterrupted   Mutant = "Release deletes another's interrupted claim"
	ReleaseOverResponse      Mutant = "Release deletes a response"
	ReleaseDeletesTookOver   Mutant = "Release deletes a claim that took over"
	ReleaseForgets           Mutant = "Release forgets that its claim took over"
	KeepsNothing             Mutant = "Renew with progress keeps none"
	KeepUnfenced             Mutant = "Renew leaves its progress with another's claim"
	ShorterReplaces          Mutant = "Renew replaces a progress by a shorter one"
	RenewDropsProgress       Mutant = "Renew without progress drops it"
	TakeOverForgetsSteps     Mutant = "a claim that takes over drops the progress"
)

// The mutants of the requests.
const (
	FailedClaimRuns Mutant = "a failed claim runs its handler"
	RefusedRuns     Mutant = "a refused request runs its handler"
	InterruptedRuns Mutant = "a request that is told of an interrupted one runs its handler"
	RecoversAsFirst Mutant = "a request whose claim took over runs as a first one"
	LateClaimRuns   Mutant = "a claim that was answered late runs its handler"
	LateClaimRenews Mutant = "a claim that took over, or may have, and was answered late is renewed"
	RenewalStops    Mutant = "a run is no longer renewed"
	RenewNotAwaited Mutant = "Release does not wait for a renewal"
	PanicFrees      Mutant = "a panic frees the key"
	KeepsOnlyItsOwn Mutant = "a step sends its own result alone"

	NoStoreForgetsSteps Mutant = "NoStore after a step frees the key"

	UnstoredFrees Mutant = "a response that could not be stored frees the key"
)
