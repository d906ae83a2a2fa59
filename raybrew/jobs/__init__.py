"""Jobs on a Ray cluster through its Jobs API: what is sent, how it is followed, how it is stopped."""
