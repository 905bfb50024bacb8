"""A long training of a tiny model, watched from outside: whether memory, handles, threads and disk stay flat."""
