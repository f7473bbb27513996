"""The papers: a module for each, with its settings as functions that return recipes, and its figure."""
