"""Runtimes: one form (`base`), one file per engine, and the choice by name (`select`). Each engine loads when a bundle asks."""
