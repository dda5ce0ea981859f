package directory

// TokenCodes is what the numbers of the token service's errors (AADSTS) mean. What is not among them is Unclassified. Sources: the
// table of error codes in Microsoft's reference, and reports. docs/errors.md says it for operators, row by row.
//
// What a code means never depends here on how old the credential is; see Class.
func TokenCodes() map[int]Class {
	return map[int]Class{
		// Not there, or not yet.
		700016:  ApplicationUnknown,
		7000229: PrincipalMissing,
		7000215: SecretRefused,
		70021:   TrustRefused,
		70025:   TrustRefused,
		700211:  TrustRefused,
		700212:  TrustRefused,
		700213:  TrustRefused,
		7002138: TrustRefused,
		7000222: SecretExpired,

		// For the customer.
		65001:   PrincipalMissing,
		650056:  PrincipalMissing,
		7000112: PrincipalDisabled,
		70001:   PrincipalDisabled,
		90002:   TenantUnknown,
		53003:   BlockedByPolicy,
		530032:  BlockedByPolicy,
		500011:  ResourceUnknown,
		650052:  ResourceUnknown,
		650054:  ResourceUnknown,

		// What an administrator's browser is told; a token request is not.
		65004:  PrincipalMissing,
		650051: PrincipalMissing,
		50020:  PrincipalMissing,
		90072:  PrincipalMissing,
		90094:  PrincipalMissing,
		90095:  PrincipalMissing,
		90093:  QuotaExceeded,

		// For whoever runs the vault.
		500021:  Denied,
		500022:  Denied,
		50166:   IssuerUnread,
		7000272: IssuerUnread,

		// Later.
		50196:   Throttled,
		90055:   Throttled,
		90006:   Transient,
		90012:   Transient,
		90024:   Transient,
		90033:   Transient,
		90090:   Transient,
		1000031: Transient,
		700024:  Transient,

		// Never.
		7000216: Malformed,
		7000218: Malformed,
		900144:  Malformed,
		70003:   Malformed,
		70011:   Malformed,
		700022:  Malformed,
		700021:  Malformed,
		700023:  Malformed,
		700027:  Malformed,
		700222:  Malformed,
		50013:   Malformed,
		50027:   Malformed,
		5002730: Malformed,
		5002738: Malformed,
		900384:  Malformed,
		90100:   Malformed,
		901002:  Malformed,
		90008:   Malformed,
		90015:   Malformed,
		900561:  Malformed,
		50011:   Malformed,
		50049:   Malformed,
		50194:   Malformed,
	}
}

// GraphCodes is what Graph's error codes mean where the HTTP status says too little. A code that is not among them is judged by
// its status.
func GraphCodes() map[string]Class {
	return map[string]Class{
		"Request_ResourceNotFound":                   NotFound,
		"Directory_ConcurrencyViolation":             Conflict,
		"Request_MultipleObjectsWithSameKeyValue":    Conflict,
		"CredentialInvalidLifetimeAsPerAppPolicy":    LifetimeRefused,
		"CredentialTypeNotAllowedAsPerAppPolicy":     BlockedByPolicy,
		"Directory_ResourceSizeExceeded":             QuotaExceeded,
		"Directory_QuotaExceeded":                    QuotaExceeded,
		"Authorization_RequestDenied":                Denied,
		"InvalidAuthenticationToken":                 Denied,
		"CannotUpdateLockedServicePrincipalProperty": Denied,
		"TooManyRequests":                            Throttled,
		"FailedDependency":                           Transient,
		"Directory_ExpiredPageToken":                 Transient,
		"BadRequest":                                 Malformed,
		"Request_BadRequest":                         Malformed,
		"Request_UnsupportedQuery":                   Malformed,
		"InvalidFederatedIdentityCredentialValue":    Malformed,
	}
}
