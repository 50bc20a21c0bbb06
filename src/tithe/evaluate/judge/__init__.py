"""Which of two answers is better: what a judge is asked, what its reply says, and how many wins that makes."""
