-- Federated credentials that the last read of an application found while the vault named no issuer: whose they are is not known.
ALTER TABLE applications ADD COLUMN unknown_trusts BIGINT NOT NULL DEFAULT 0;
