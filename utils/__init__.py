"""The course's shared package. A notebook begins with `from utils.course import start`.

Its rooms (subpackages), from the top down. A room imports only from rooms below it:

exercises   the checks of the exercises, one module per notebook
show        plots, tables and the web demo
classroom   a page on which a class votes by telephone, and the training on its votes
votes       votes of people: the store, agreement beyond chance, voting in notebook and terminal
judge       evaluation: metrics with intervals, comparisons, the frontier of KL and reward
finetune    what SFT, DPO and ORPO add to TRL: resuming, scarce memory, packing, shared prompts, T5
ppo         PPO in nine numbered steps, and its policy, sampling, rewards and processes
models      loading models, adapters, answers and their log-probabilities, the lab's stand-ins
data        Vietnamese texts: reading and checking them, feedback, pairs, and how pairs are mined
course      the session of a notebook: profiles, artifacts, the Hub, Colab, errors
losses      every loss as a pure function of tensors

What each room imports (the others import nothing):

exercises → votes, course, losses
show → votes, judge, models, course
classroom → votes, judge, finetune, models, data, course
votes → course
judge → finetune, ppo, models, data, course, losses
finetune → models, course, losses
ppo → models, course, losses
models → data, course, losses
data → course

Each room's `__init__` lists its public names: `from utils.ppo import PPOTrainer`.
"""
