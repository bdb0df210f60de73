package model

// A Mutant is one rule of the protocol, broken. The checks must notice each.
type Mutant string

// The mutants.
const (
	ClaimNotAtomic       Mutant = "Claim looks and takes in two steps"
	TokensShared         Mutant = "all requests have one token"
	RenewUnfenced        Mutant = "Renew takes another's claim"
	RenewOverResponse    Mutant = "Renew makes its own response outstanding"
	CompleteOverClaim    Mutant = "Complete replaces another's claim"
	CompleteOverResponse Mutant = "Complete replaces another's response"
	ReleaseUnfenced      Mutant = "Release deletes another's claim"
	ReleaseOverResponse  Mutant = "Release deletes a response"
	FailedClaimRuns      Mutant = "a failed claim runs its handler"
	RefusedRuns          Mutant = "a refused request runs its handler"
	HoldIsLease          Mutant = "a crash frees the key one lease later"
	PanicFrees           Mutant = "a panic frees the key"
	UnstoredFrees        Mutant = "a response that could not be stored frees the key"
)
