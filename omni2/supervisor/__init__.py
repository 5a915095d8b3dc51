"""`make run`: one process that starts, watches and stops all others.

processes  who a process is, beyond its number, and how it is ended
keeper     ends everything when the supervisor itself is killed
folder     the data folder: lock, keys, socket folder, what runs now
commands   the command line and environment of each part, for here and for the containers
parts      one part: start, wait until it answers, start again, stop
story      the order in which all that happens
"""
