"""Figures of products, releases and chains: functions that return matplotlib Figures."""
