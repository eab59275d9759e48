"""Plans: what a config needs on machines that are not here. Its step is compiled for them; nothing runs.

devices      the table of published peaks of accelerators
topology     names of machines, `v5e:16x16`, and devices to compile for
sizes        how many examples a config trains on, without the data
compiling    compiles the train step; how much device memory it needs
flops        arithmetic of model and step, before compilation
hlo          the text of a compiled program: its instructions, and how often each runs
cost         its arithmetic, and the bytes that it moves
collectives  communication between its devices
roofline     bounds on the time of a step
planner      combines all of these into a plan
search       plans of a config with other strategies, the cheapest first
report       plans as text
"""
