-- When a rotation was last asked for: whoever asks again may have mended what was in the way. 0 where nobody did since create_time.
ALTER TABLE rotations ADD COLUMN ask_time BIGINT NOT NULL DEFAULT 0;
