package sqldb

// ForUpdate ends a SELECT with ORDER BY whose rows are to be locked until the commit, in that order: so those who lock several rows
// never wait for each other in a circle, which an UPDATE of several rows, in whatever order the plan has, does not promise. What
// is read is what holds once the lock is had. It must be a transaction that may write. On SQLite it is empty, for there such a transaction has the
// database to itself.
func (t Tx) ForUpdate() string {
	if t.driver == DriverPostgres {
		return ` FOR NO KEY UPDATE`
	}
	return ""
}
