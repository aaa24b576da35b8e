"""What is done with runs that were made: evaluated, compared bit by bit, drawn, exported."""
