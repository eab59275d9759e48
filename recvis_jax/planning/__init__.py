"""What a config needs of machines that one does not have: compiled for them, nothing runs.

devices      what accelerators can do at best: the one table of published peaks
topology     names of machines, `v5e:16x16`, and devices that stand for them
sizes        how many examples a config trains on, without the data
compiling    the train step, compiled; what it needs of a device's memory
flops        what model and step ask for, before they are compiled
hlo          the text of a compiled program: its instructions, and how often each runs
cost         its arithmetic, and the bytes that it moves
collectives  what its devices exchange
roofline     bounds on the time of a step
planner      all of these together: a plan
search       plans of one config with other strategies, the cheapest first
report       plans as text
"""
