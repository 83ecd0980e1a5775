"""Questions answered by many trainings: a plan says which configurations, data and seeds, and the
tools do the rest. The door is :func:`ctmasknet.experiments.run.run_plan`.
"""
