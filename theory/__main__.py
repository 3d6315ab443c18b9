from theory.cli import main

# The examinations run in processes of their own, which import this module again.
if __name__ == "__main__":
    main()
