"""Where the files of stores lie: folders and object stores behind one protocol, with locks, leases and copies."""
