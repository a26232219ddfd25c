"""What a training step takes on a device that this machine need not have. The step is compiled and its work counted; it never runs.

chips       published peaks
topology    devices to plan for
shapes      of the step's arguments and intermediates
memory      by kind, from the compiled step
work        flops, bytes and least times of the step's parts
planning    `make_plan`, and the search for the largest batch that fits
text        the plan as text
"""
