"""How good a video is: compared with another one, or judged on its own."""
