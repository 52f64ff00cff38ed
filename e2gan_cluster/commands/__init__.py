"""The commands of `e2gan`, one file a group: plain functions that parse options and call the stages.

Heavy imports (torch, Ray, MLflow, boto3, diffusers) go inside the functions, so that `e2gan --help` is quick.
"""
