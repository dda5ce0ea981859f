-- A row for each account in which something was created since: whoever creates counts it up first, so that one at a time
-- looks whether the quota allows one more. Nothing is counted here.
CREATE TABLE accounts (
    account TEXT   NOT NULL PRIMARY KEY,
    writes  BIGINT NOT NULL
);
