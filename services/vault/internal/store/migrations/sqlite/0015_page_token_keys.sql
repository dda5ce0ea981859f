-- What the page tokens of all replicas are sealed with: random, in hex. It guards no data, only that a token cannot be read or made, so it has no better place.
CREATE TABLE page_token_keys (
    id     BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    secret TEXT   NOT NULL CHECK (length(secret) = 64)
);
