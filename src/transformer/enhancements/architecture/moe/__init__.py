"""Mixture of experts: a feed-forward part of several networks, of which each token uses a few.

routing.py          what a decision is, and what routers share
softmax.py          softmax before the choice (Switch, GShard), or after it (Mixtral)
sigmoid.py          sigmoid scores and a bias that balances without a loss (DeepSeek-V3)
capacity.py         at most so many tokens an expert (Switch)
losses.py           what is added to the objective so that the experts share the work
experts.py          the networks, side by side in one matrix for each map
dispatch.py         how tokens come to their experts: a loop to read, and one grouped product
grouped_product.py  that product
mixture.py          the part itself, and the enhancement
expert_choice.py    experts that choose their tokens
soft.py             experts that work on averages of tokens
"""
