-- Federated credentials that the last read of an application found and nobody here made, beside foreign_passwords.
ALTER TABLE applications ADD COLUMN foreign_trusts BIGINT NOT NULL DEFAULT 0;
