"""Runs a recipe: its graph of stages, skipped where done, resumed where interrupted."""
